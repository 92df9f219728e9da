"""Where records come from: files in every format, files of packages, Hub data sets."""
