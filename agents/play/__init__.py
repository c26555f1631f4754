"""Play: a person's hands, or the policy, at the wheel of a dream."""
