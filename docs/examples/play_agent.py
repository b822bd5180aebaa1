"""Play an episode in a plain gymnasium environment: python play_agent.py DIRECTORY"""

import sys

from dqn import Agent

agent = Agent.load(sys.argv[1])
env = agent.make_env()
(observation, info), score, over = env.reset(), 0.0, False
while not over:
    observation, reward, terminated, truncated, info = env.step(agent.act(observation))
    score, over = score + float(reward), terminated or truncated
print(f"an episode with a score of {score:g}")
