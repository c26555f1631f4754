"""How judges are taught: labelled clips in, a judge out."""
