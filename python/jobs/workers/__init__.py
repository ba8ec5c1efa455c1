"""What a worker of each type does with a job."""
