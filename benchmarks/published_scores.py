"""Published training scores of other agents after a million states, for the table of games.

Source: `baselines/atari/data/*_Impala.json` of Dopamine (https://github.com/google/dopamine): means of five seeds over
the quarter million states that ends at 1.0 million, with sticky actions and epsilon 0.01. DQN has the squared error and
Adam, both agents have IMPALA's network, and both train eight samples for each state that is played.
"""

from __future__ import annotations

# title: (DQN, IQN)
DOPAMINE = {
    "Breakout": (58, 111),
    "Pong": (6.2, 14.8),
    "Qbert": (993, 2_630),
    "SpaceInvaders": (676, 751),
    "Seaquest": (1_090, 2_938),
    "BeamRider": (5_212, 4_366),
    "Enduro": (742, 1_056),
    "BattleZone": (11_585, 20_408),
    "DoubleDunk": (-19.6, -18.8),
    "NameThisGame": (5_967, 9_242),
    "Phoenix": (6_451, 5_710),
}
