"""``make gpu-check``: does what was written without a GPU work on one, and how fast?"""
