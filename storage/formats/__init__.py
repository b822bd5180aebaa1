"""What is in the files of a unit or of an exported agent."""
