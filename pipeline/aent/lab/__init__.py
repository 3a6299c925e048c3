"""Experiments that check claims about entropy control on a CPU in minutes."""
