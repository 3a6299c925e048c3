"""aent: RL post-training of language models whose entropy is under control."""
