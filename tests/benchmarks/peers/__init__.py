"""The contestants: each makes a function that trains a rung for some updates.

A contestant is a module with ``prepare(rung) -> (train, version)``. ``train(updates)`` makes so
many updates on the rung's minibatches, in the data's order and over again, and returns the loss
on the first minibatch as a float, when everything is computed.
"""
