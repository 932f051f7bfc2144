"""Other people's images, told apart by what is there: folders, archives, arrays."""
