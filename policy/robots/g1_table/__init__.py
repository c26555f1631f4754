"""A MuJoCo AgiBot G1 at a table: stands in for the real robot, and is the one place where truth is known."""
