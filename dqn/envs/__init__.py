"""Games, and how they are played: from an emulator's frame to the experience of a cycle."""
