"""What a file goes through: landed, read, checked, stored and reported."""
