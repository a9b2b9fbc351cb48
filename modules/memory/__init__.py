"""Memory: the short-term memory of an episode, and the replay buffer (LeCun 2022, 3 and 4.9)."""
