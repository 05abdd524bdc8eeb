"""The engine without a model: the real scheduler and block manager on a virtual clock, with a cost model for time."""
