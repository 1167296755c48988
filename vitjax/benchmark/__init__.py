"""What analyses cost: speed, memory, arithmetic."""
