"""What can put the parts of methods in place: one folder per engine."""
