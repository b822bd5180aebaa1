"""An agent described for use outside this project: its computation as data, and its model card."""
