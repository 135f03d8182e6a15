"""What a study leaves for its readers: a table, figures and one page."""
