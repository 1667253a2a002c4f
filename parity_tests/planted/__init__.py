"""The ladder is tested itself: bugs are planted in copies of the trainers, and each has to turn its own rung red."""
