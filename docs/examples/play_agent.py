"""Play an episode in a plain gymnasium environment: python play_agent.py DIRECTORY"""

import sys

import gymnasium

from dqn import Agent

agent, env = Agent.load(sys.argv[1]), gymnasium.make("ale_py:ALE/Breakout-v5")
(observation, info), score, over = env.reset(), 0.0, False
while not over:
    observation, reward, terminated, truncated, info = env.step(agent.act(observation))
    score, over = score + float(reward), terminated or truncated
print(f"an episode with a score of {score:g}")
