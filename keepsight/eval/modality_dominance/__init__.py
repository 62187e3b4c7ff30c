"""How much of a model's attention goes to text and how much to pictures."""
