"""Sources of records: files in every supported format, files of packages, Hub data sets."""
