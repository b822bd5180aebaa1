"""Figures, and pictures of recorded episodes. Only this part of dqn requires matplotlib and pillow."""
