"""Description of an agent for use without this project: its computation as data, and its model card."""
