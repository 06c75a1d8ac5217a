"""What developers run now and then; not part of the package."""
