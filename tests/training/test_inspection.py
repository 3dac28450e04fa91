"""Data that do not fit the loss are refused before anything is computed with them."""

import warnings

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
import scipy.sparse
from pytensor.compile.builders import OpFromGraph

from downhill_rms import Dataset, Trainer

try:
    from pytensor.conditional import ifelse  # since PyTensor 3.3
except ImportError:
    from pytensor.ifelse import ifelse

RNG = np.random.default_rng(0)
X = RNG.normal(size=(960, 4))
LABELS = RNG.integers(0, 3, size=960)


def shared(value, name):
    return pytensor.shared(np.asarray(value, dtype="float64"), name=name)


def log_softmax(x, classes=3):
    w, b = shared(np.zeros((4, classes)), "w"), shared(np.zeros(classes), "b")
    logits = x @ w + b
    return logits - pt.log(pt.exp(logits).sum(axis=1, keepdims=True))


def classifier(mode, labels=lambda y: y, dtype="int64"):
    x, y = pt.matrix("x"), pt.vector("y", dtype=dtype)
    loss = -log_softmax(x)[pt.arange(y.shape[0]), labels(y)].mean()
    return Trainer(loss, inputs=[x, y], mode=mode)


def spoilt(row, value):
    labels = LABELS.copy()
    labels[row] = value
    return labels


def embedding(expression, words=10):
    """A loss of an expression of word numbers and of a matrix with a row for each word."""
    numbers = pt.lmatrix("numbers")
    return Trainer(
        pt.sqr(expression(shared(np.ones((words, 2)), "words"), numbers)).mean(), inputs=[numbers]
    )


NUMBERS = RNG.integers(0, 10, size=(50, 7))


class TestIndices:
    def test_one_bad_label_in_many_is_found_where_the_array_is_bound(self, mode):
        trainer = classifier(mode)
        data = [X, spoilt(513, 3)]
        message = r"train, row 513: input 'y' is 3, and axis 1 of .* has 3 entries.*from -3 to 2"
        with pytest.raises(ValueError, match=message):
            trainer.minimize(data, max_epochs=1)
        with pytest.raises(ValueError, match="valid, row 513"):
            trainer.minimize([X, LABELS], data, max_epochs=1)
        with pytest.raises(ValueError, match="dataset, row 513"):
            trainer.evaluate(data)
        assert trainer.update_count == 0

    @pytest.mark.parametrize("row", [0, 31, 32, 500, 958, 959])
    @pytest.mark.parametrize("value", [3, -4, 2**40, -(2**40)])
    def test_any_row_and_any_value(self, mode, row, value):
        with pytest.raises(ValueError, match=f"row {row}: input 'y' is {value},"):
            classifier(mode).evaluate([X, spoilt(row, value)])

    @pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint16", "int64"])
    def test_any_integer_dtype(self, mode, dtype):
        trainer = classifier(mode, dtype=dtype)
        with pytest.raises(ValueError, match="row 7: input 'y' is 3,"):
            trainer.evaluate([X, spoilt(7, 3).astype(dtype)])
        trainer.evaluate([X, LABELS.astype(dtype)])

    def test_negative_indices_count_from_the_end(self, mode):
        trainer = classifier(mode)
        assert trainer.evaluate([X, LABELS - 3]) == trainer.evaluate([X, LABELS])

    @pytest.mark.parametrize(
        ("labels", "good", "bad"),
        [
            (lambda y: y - 1, 3, 4),
            (lambda y: y // 2, 5, 6),
            (lambda y: pt.cast(y, "int32"), 2, 3),
            (lambda y: 2 - y, 5, 6),
            (lambda y: pt.switch(pt.eq(y, 9), 0, y), 9, 8),
            (lambda y: pt.clip(y, 0, 3), 2, 100),
        ],
    )
    def test_integers_computed_from_inputs(self, mode, labels, good, bad):
        trainer = classifier(mode, labels)
        trainer.evaluate([X, spoilt(700, good)])
        with pytest.raises(ValueError, match=r"row 700: an? (index computed from )?input 'y'") as e:
            trainer.evaluate([X, spoilt(700, bad)])
        assert "an index computed from" in str(e.value)

    @pytest.mark.parametrize(
        "expression",
        [
            lambda words, numbers: words[numbers],
            lambda words, numbers: words[numbers[:, 2]],
            lambda words, numbers: pt.take(words, numbers, axis=0),
            lambda words, numbers: words[numbers.T].sum(axis=0),
            lambda words, numbers: pt.inc_subtensor(words[numbers.ravel()], 1.0),
            lambda words, numbers: words[numbers, pt.zeros_like(numbers)],
        ],
    )
    def test_lookups(self, expression):
        trainer = embedding(expression)
        trainer.evaluate([NUMBERS])
        bad = NUMBERS.copy()
        bad[33, 2] = 10
        with pytest.raises(ValueError, match=r"row 33.* is 10, .* of parameter 'words' has 10"):
            trainer.evaluate([bad])

    def test_the_column_is_told(self):
        bad = NUMBERS.copy()
        bad[33, 5] = 10
        with pytest.raises(ValueError, match="dataset, row 33, column 5: input 'numbers' is 10"):
            embedding(lambda words, numbers: words[numbers]).evaluate([bad])

    def test_columns_that_index_nothing_may_hold_anything(self):
        bad = NUMBERS.copy()
        bad[:, 3] = 99
        embedding(lambda words, numbers: words[numbers[:, 2]]).evaluate([bad])

    def test_one_hot_by_comparison_is_no_index(self, mode):
        x, y = pt.matrix("x"), pt.lvector("y")
        hot = pt.eq(y[:, None], np.arange(3))
        Trainer((log_softmax(x) * hot).sum(), mode=mode).evaluate([X, LABELS + 5])

    def test_inside_a_scan(self):
        def step(number, state, words):
            return state + words[number]

        def last(words, numbers):
            start = pt.zeros((numbers.shape[0], 2))
            return pytensor.scan(
                step,
                sequences=[numbers.T],
                outputs_info=[start],
                non_sequences=[words],
                return_updates=False,
            )[-1]

        trainer = embedding(last)
        trainer.evaluate([NUMBERS])
        bad = NUMBERS.copy()
        bad[33, 6] = 10
        with pytest.raises(ValueError, match=r"row 33.* is 10, .* 'words' has 10 entries"):
            trainer.evaluate([bad])

    def test_inside_an_op_from_graph(self):
        table, places = pt.matrix(), pt.lmatrix()
        lookup = OpFromGraph([table, places], [table[places]])
        trainer = embedding(lambda words, numbers: lookup(words, numbers))
        trainer.evaluate([NUMBERS])
        with pytest.raises(ValueError, match="row 0, column 0: input 'numbers' is -11"):
            trainer.evaluate([np.full((3, 7), -11)])

    def test_an_index_through_a_table_of_integers(self):
        table = pytensor.shared(np.arange(20) // 2, name="table")
        trainer = embedding(lambda words, numbers: words[table[numbers]])
        trainer.evaluate([NUMBERS + 10])
        with pytest.raises(ValueError, match="row 2.* is 20, .* of shared variable 'table' has 20"):
            trainer.evaluate([np.vstack([NUMBERS[:2], NUMBERS[:1] * 0 + 20])])

    def test_the_first_minibatch_is_computed_where_nothing_is_known(self, mode):
        """A hash of real features cannot be followed; the first minibatch shows it."""
        x = pt.matrix("x")
        words = shared(np.ones(5), "words")
        trainer = Trainer(words[pt.cast(pt.round(x[:, 0]), "int64")].sum(), mode=mode)
        trainer.evaluate([np.ones((50, 2))])
        with pytest.raises(ValueError, match=r"first batch of dataset .* out of bounds"):
            trainer.evaluate([np.full((50, 2), 5.0)])

    def test_batches_that_are_read_as_they_come_are_checked_as_they_come(self, mode):
        trainer = classifier(mode)
        batches = [(X[i : i + 96], spoilt(513, 3)[i : i + 96]) for i in range(0, 960, 96)]
        message = "batch 5 of train, row 33: input 'y' is 3,"
        with pytest.raises(ValueError, match=message):
            trainer.minimize(batches, [X, LABELS], max_epochs=1)
        assert trainer.update_count == 5
        with pytest.raises(ValueError, match="batch 5 of dataset, row 33"):
            trainer.evaluate(batches)

    @pytest.mark.parametrize("options", [{}, {"updates_per_call": 4}])
    @pytest.mark.parametrize("prefetch", [0, 2])
    def test_memory_maps_are_checked_as_they_are_read(self, mode, tmp_path, options, prefetch):
        np.save(tmp_path / "y.npy", spoilt(513, 3))
        labels = np.load(tmp_path / "y.npy", mmap_mode="r")
        data = Dataset([X, labels], name="train", rng=0, prefetch=prefetch)
        with pytest.raises(ValueError, match="train, row 513: input 'y' is 3,"):
            classifier(mode).minimize(data, [X, LABELS], max_epochs=1, **options)

    def test_a_step_is_checked(self, mode):
        trainer = classifier(mode)
        trainer.step([X[:8], LABELS[:8]])
        values = [p.get_value() for p in trainer.graph.params]
        with pytest.raises(ValueError, match="the batch, row 1: input 'y' is 3"):
            trainer.step([X[:8], [0, 3, 0, 0, 0, 0, 0, 0]])
        for param, value in zip(trainer.graph.params, values, strict=True):
            np.testing.assert_array_equal(param.get_value(), value)
        assert trainer.update_count == 1

    def test_samples_along_the_second_axis(self):
        trainer = embedding(lambda words, numbers: words[numbers])
        bad = NUMBERS.T.copy()
        bad[4, 33] = 10
        with pytest.raises(ValueError, match="dataset, row 33, column 4: input 'numbers' is 10"):
            trainer.evaluate(Dataset([bad], axis=1))

    def test_a_table_that_has_grown_since(self):
        trainer = embedding(lambda words, numbers: words[numbers])
        trainer.step([NUMBERS])
        trainer.graph.params[0].set_value(np.ones((30, 2)))
        assert np.isfinite(trainer.evaluate([NUMBERS + 15])["loss"])

    def test_indices_made_of_the_number_of_samples(self, mode):
        """They are right for a minibatch of 32, and would not be for all 960 rows."""
        x, y = pt.matrix("x"), pt.lvector("y")
        scale = shared(np.ones(32), "scale")
        loss = (x[:, 0] * scale[pt.arange(y.shape[0]) + 0 * y]).mean()
        Trainer(loss, inputs=[x, y], mode=mode).evaluate([X, LABELS])

    def test_a_constant_column_that_is_not_there(self, mode):
        x = pt.matrix("x")
        loss = (x[:, 5] * shared(1.0, "w")).mean()
        with pytest.raises(ValueError, match=r"input 'x' of shape \(32, 4\) in Subtensor: index 5"):
            Trainer(loss, mode=mode).evaluate([X])


class TestShapes:
    def regression(self, mode, b=0.0):
        x, y = pt.matrix("x"), pt.vector("y")
        w = shared(np.ones(3), "w")
        return Trainer(pt.sqr(x @ w + shared(b, "b") - y).mean(), inputs=[x, y], mode=mode)

    @pytest.mark.parametrize("width", [0, 2, 4])
    def test_a_width_that_the_product_does_not_have(self, mode, width):
        trainer = self.regression(mode)
        message = rf"input 'x' of shape \(12, {width}\) meets parameter 'w' of shape \(3,\) in Dot"
        data = [np.zeros((12, width)), np.zeros(12)]
        with pytest.raises(ValueError, match=f"first batch of dataset .*{message}"):
            trainer.evaluate(data)
        with pytest.raises(ValueError, match=message):
            trainer.minimize(data)
        with pytest.raises(ValueError, match=f"the batch .*{message}"):
            trainer.step(data)
        with pytest.raises(ValueError, match=f"batch 0 of train .*{message}"):
            trainer.minimize([data])
        assert trainer.update_count == 0

    def test_a_width_that_changes_on_the_way(self, mode):
        good, bad = [np.ones((4, 3)), np.ones(4)], [np.ones((4, 0)), np.ones(4)]
        with pytest.raises(ValueError, match=r"batch 2 of train .*input 'x' of shape \(4, 0\)"):
            self.regression(mode).minimize([good, good, bad], good, max_epochs=1)

    def test_a_parameter_of_one_row_that_would_be_repeated(self, mode):
        """Theano's guide writes biases so; PyTensor wants to be told."""
        x = pt.matrix("x")
        b = shared(np.zeros((1, 4)), "b")
        message = (
            r"parameter 'b' of shape \(1, 4\) in Add: .*Make parameter 'b' with shape=\(1, None\)"
        )
        with pytest.raises(ValueError, match=message):
            Trainer(pt.sqr(x + b).mean(), mode=mode).minimize([X], max_epochs=1)
        b = pytensor.shared(np.zeros((1, 4)), name="b", shape=(1, None))
        Trainer(pt.sqr(x + b).mean(), mode=mode).minimize([X], max_epochs=1)

    def test_one_row_that_meets_one_sample_is_not_repeated(self, mode):
        x = pt.matrix("x")
        b = shared(np.zeros((1, 4)), "b")
        Trainer(pt.sqr(x + b).mean(), mode=mode).minimize([X[:1]], max_epochs=1)

    def test_lengths_that_differ_elementwise(self, mode):
        x = pt.matrix("x")
        loss = pt.sqr(pt.tanh(x * shared(np.ones(3), "scale"))).mean()
        message = (
            r"input 'x' of shape .32, 4. meets parameter 'scale' of shape .3,. in Mul: the len"
        )
        with pytest.raises(ValueError, match=f"{message}gths along axis 1 are 4 and 3"):
            Trainer(loss, mode=mode).minimize([X])

    def test_inside_a_scan(self):
        x = pt.tensor3("x")
        w, u = shared(np.ones((4, 5)), "w"), shared(np.ones((6, 5)), "u")

        def step(one, state, w, u):
            return pt.tanh(one @ w + state @ u)

        states = pytensor.scan(
            step,
            sequences=[x.swapaxes(0, 1)],
            outputs_info=[pt.zeros((x.shape[0], 5))],
            non_sequences=[w, u],
            return_updates=False,
        )
        trainer = Trainer(states[-1].sum(), inputs=[x])
        message = r"in a scan of shape .* meets parameter 'u' of shape \(6, 5\) in Dot: 5 columns"
        with pytest.raises(ValueError, match=message):
            trainer.evaluate([np.zeros((8, 3, 4))])

    def test_a_branch_that_is_not_taken_fails_nothing(self, mode):
        x = pt.matrix("x")
        w, v = shared(np.ones(4), "w"), shared(np.ones(5), "v")
        loss = ifelse(pt.eq(x.shape[1], 4), (x @ w).sum(), (x @ v).sum())
        trainer = Trainer(loss, mode=mode)
        trainer.evaluate([X])
        trainer.evaluate([X @ np.ones((4, 5))])
        with pytest.raises(ValueError, match="parameter 'v' of shape"):
            trainer.evaluate([X @ np.ones((4, 6))])

    def test_what_only_the_backend_finds_is_said_in_the_same_words(self, mode):
        """The number of samples is no business of the arrays' shapes; a parameter makes it so."""
        x = pt.matrix("x")
        loss = pt.sqr(x[:, 0] - shared(np.ones(32), "one for each")).mean()
        with pytest.raises(ValueError, match=r"meets parameter 'one for each' of shape \(32,\)"):
            Trainer(loss, mode=mode).minimize(Dataset([X[:50]], shuffle=None), max_epochs=1)

    @pytest.mark.parametrize(
        ("shape", "data", "message"),
        [
            ((None, 3), X, "input 'x' is given batches of length 4 along axis 1, and declares 3"),
            ((32, None), X[:50], "length 18 along axis 0, and declares 32"),
            ((16, None), X, "length 32 along axis 0, and declares 16"),
        ],
    )
    def test_declared_shapes(self, mode, shape, data, message):
        x = pt.tensor("x", dtype="float64", shape=shape)
        trainer = Trainer((pt.sqr(x) * shared(1.0, "w")).mean(), mode=mode)
        with pytest.raises(ValueError, match=message):
            trainer.minimize([data], max_epochs=1)

    def test_a_column_minus_a_vector_warns_once_data_are_bound(self, mode):
        x, y = pt.matrix("x"), pt.vector("y")
        loss = pt.sqr(x - y).mean() * shared(1.0, "w")
        with (
            pytest.warns(UserWarning, match="column 'x'"),
            pytest.raises(ValueError, match="None, 1"),
        ):
            Trainer(loss, inputs=[x, y], mode=mode).minimize([X[:, :1], X[:, 0]])


class TestFinite:
    def trainer(self, mode, clean=lambda x: x):
        x = pt.matrix("x")
        return Trainer(pt.sqr(clean(x) @ shared(np.ones(4), "w")).mean(), mode=mode)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_the_entry_is_told_before_training(self, mode, value, dtype):
        bad = np.tile(X, (10, 1)).astype(dtype)
        bad[4000, 2] = value
        trainer = self.trainer(mode)
        with pytest.raises(ValueError, match=f"train, row 4000, column 2 of input 'x' is {value}"):
            trainer.minimize([bad], max_epochs=1)
        assert trainer.update_count == 0
        with pytest.raises(ValueError, match="valid, row 4000, column 2"):
            trainer.minimize([X], [bad], max_epochs=1)

    def test_nan_that_the_loss_masks(self, mode):
        """A missing value that the graph tests for is meant."""
        bad = X.copy()
        bad[::7, 1] = np.nan
        trainer = self.trainer(mode, lambda x: pt.switch(pt.isnan(x), 0, x))
        train, _ = trainer.minimize([bad], max_epochs=1, learning_rate=0.01)
        expected = np.mean((np.nan_to_num(bad) @ np.ones(4)) ** 2)
        assert trainer.history[0].valid["loss"] < expected
        assert np.isfinite(train["loss"])

    def test_infinity_that_the_loss_takes(self, mode):
        """Minus infinity closes a place to attention."""
        bad = np.zeros_like(X)
        bad[:, 3] = -np.inf
        trainer = self.trainer(mode, lambda x: pt.special.softmax(x, axis=1))
        trainer.minimize([bad], max_epochs=1)

    def test_nan_that_reaches_the_gradient_alone(self, mode):
        """The loss is masked, its gradient is not: 0 * nan."""
        bad = np.ones_like(X)
        bad[3] = -1.0
        bad[5] = np.nan
        w = shared(np.ones(4), "w")
        x = pt.matrix("x")
        product = x @ w
        loss = pt.switch(pt.isnan(product), 0, product).sum()
        trainer = Trainer(loss, mode=mode)
        assert np.isfinite(trainer.evaluate([bad])["loss"])
        with pytest.raises(ValueError, match="row 5, column 0 of input 'x' is nan"):
            trainer.minimize([bad], max_epochs=1)

    def test_an_array_is_looked_through_once(self, mode):
        """What a user writes into it later is found by the loss, as in data read as they come."""
        data = X.copy()
        trainer = self.trainer(mode)
        trainer.minimize([data], max_epochs=1)
        data[:] = np.nan
        with pytest.raises(ValueError, match="loss is nan on batch 0 of train"):
            trainer.minimize([data], max_epochs=1)
        with pytest.raises(ValueError, match="row 0, column 0 of input 'x' is nan"):
            trainer.minimize([data.copy()], max_epochs=1)

    @pytest.mark.parametrize("kind", ["csr", "csc"])
    def test_sparse_data(self, mode, kind):
        s = pytensor.sparse.csr_matrix("s", dtype="float64")
        loss = pytensor.sparse.structured_dot(s, shared(np.ones((4, 1)), "w")).sum()
        bad = scipy.sparse.random(960, 4, 0.3, format="lil", random_state=0)
        bad[77, 1] = np.nan
        with pytest.raises(ValueError, match="train, row 77, column 1 of input 's' is nan"):
            Trainer(loss, mode=mode).minimize([bad.asformat(kind)], max_epochs=1)

    def test_large_numbers_whose_sum_overflows_are_finite(self, mode):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss = (pt.fmatrix("x") * 1e-30 * shared(1.0, "w").astype("float32")).mean()
            Trainer(loss, mode=mode).minimize([np.full((50, 4), 3e38, "float32")], max_epochs=1)

    def test_batches_are_told_by_their_number_when_training_diverges(self, mode):
        trainer = self.trainer(mode)
        batches = [[X[:32]], [X[32:64]], [X[:32] * np.nan]]
        trainer.minimize(batches, [X], max_epochs=2)
        assert trainer.divergence.batch == 2
        assert "update 3, batch 2 of its epoch: " in str(trainer.divergence)


class TestMasked:
    MASKED = np.ma.masked_greater(X, 1.0)

    def test_masks_are_refused_with_the_remedy(self, mode):
        trainer = TestFinite().trainer(mode)
        count = int(self.MASKED.mask.sum())
        message = rf"{count} of 3840 values for 'x' .* are masked.*filled\(value\)"
        for use in (trainer.minimize, trainer.evaluate, trainer.step):
            with pytest.raises(ValueError, match=message):
                use([self.MASKED])
        with pytest.raises(ValueError, match="are masked"):
            trainer.minimize([[self.MASKED]], [X])
        with pytest.raises(ValueError, match="are masked"):
            next(iter(Dataset([self.MASKED])))

    def test_what_can_only_be_sliced_may_give_masked_arrays(self, mode):
        class Variable:  # of netCDF4
            shape, dtype = X.shape, X.dtype

            def __init__(self, array):
                self.array = array

            def __getitem__(self, selection):
                return self.array[selection]

        trainer = TestFinite().trainer(mode)
        trainer.evaluate([Variable(np.ma.array(X))])
        with pytest.raises(ValueError, match="are masked"):
            trainer.evaluate([Variable(self.MASKED)])

    def test_a_mask_that_hides_nothing_is_no_mask(self, mode):
        trainer = TestFinite().trainer(mode)
        assert trainer.evaluate([np.ma.array(X)]) == trainer.evaluate([X])
