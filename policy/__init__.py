"""The deployed policy, and the robot it moves."""
