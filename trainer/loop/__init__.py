"""TRL's trainer with the order check and the defences' terms."""
