"""What finished runs bear out: paired tests, findings on common beliefs, and how often they are right."""
