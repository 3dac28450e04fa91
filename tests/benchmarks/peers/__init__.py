"""The contestants: each makes functions that train the rungs for some updates.

A contestant is a module with a function for each kind of rung that it takes part in,
``network(rung)``, ``update_alone(rung)``, ``language_model(rung)``, ``sparse(rung)``, with the
usage that it is named with as a second argument, and ``version()``. Such a function returns
``train(updates)``, which makes so many updates on the rung's minibatches, in their order and over
again, and returns, when everything is computed, a number by which contestants are compared: the
loss on the first minibatch, or the mean of the parameters where there is no loss.
"""
