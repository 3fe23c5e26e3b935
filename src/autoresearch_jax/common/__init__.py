"""What knows nothing of research: errors, files, text, paths, literals, the console."""
