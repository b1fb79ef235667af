"""What is wrong with a preference file, as far as the file can tell."""
