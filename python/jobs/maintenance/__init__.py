"""What a node does for jobs of type maintenance: on itself, with the leader, and with the other members."""
