"""Published methods, one readable file each, by family. `fedloom.methods()` finds them by scanning this package."""
