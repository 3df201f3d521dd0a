"""What holds for every sequence of changes, and not only for those of which somebody thought."""
