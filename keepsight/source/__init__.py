"""From pictures and messages to model inputs."""
