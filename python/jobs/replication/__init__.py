"""Data kept in step with elsewhere: what two sides say to each other, and who carries a sync out."""
