"""What a student's parts do and cost: heads by their maps and by what they move, layers by likeness, cost by length."""
