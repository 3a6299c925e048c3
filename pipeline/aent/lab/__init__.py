"""The laboratory: claims about entropy control that can be checked on a CPU in minutes."""
