"""The networks of TVM's ``relay.testing`` as Relay graphs, of any width.

Structure, names and attributes are those of TVM 0.8 to 0.19. ``divisor`` divides the channels
that a network fixes; at 1 it is the network of the benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.relay_layers import Layers, Pair, Value

Net = tuple[Layers, Value]
_EPS = 2e-5
_GAIN = 0.25  # of what a residual unit adds: the softmax would be 1 of one class and 0 elsewhere


def resnet(
    depth: int, image: int, divisor: int = 1, layout: str = "NCHW", classes: int = 1000,
    units: Sequence[int] = (),
) -> Net:  # fmt: skip
    """Pre-activation ResNet: basic blocks for 18 and 34, bottlenecks from 50 on."""
    fixed = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
    bottleneck = depth >= 50
    filters = [64, 256, 512, 1024, 2048] if bottleneck else [64, 64, 128, 256, 512]
    filters = [f // divisor for f in filters]
    n = Layers((1, 3, image, image) if layout == "NCHW" else (1, image, image, 3), layout)
    axis = layout.index("C")

    def norm_relu(x: Value, name: str) -> Value:
        return n.relu(n.batch_norm(x, name, epsilon=_EPS, axis=axis))

    def unit(x: Value, out: int, strides: Pair, same: bool, name: str) -> Value:
        first = norm_relu(x, f"{name}_bn1")
        if bottleneck:
            y = n.conv2d(first, out // 4, (1, 1), f"{name}_conv1", strides=strides)
            y = n.conv2d(norm_relu(y, f"{name}_bn2"), out // 4, (3, 3), f"{name}_conv2",
                         padding=(1, 1))  # fmt: skip
            y = n.conv2d(norm_relu(y, f"{name}_bn3"), out, (1, 1), f"{name}_conv3", gain=_GAIN)
        else:
            y = n.conv2d(first, out, (3, 3), f"{name}_conv1", strides=strides, padding=(1, 1))
            y = n.conv2d(norm_relu(y, f"{name}_bn2"), out, (3, 3), f"{name}_conv2",
                         padding=(1, 1), gain=_GAIN)  # fmt: skip
        short = x
        if not same:
            short = n.conv2d(first, out, (1, 1), f"{name}_sc", strides=strides, gain=0.5)
        return n.add(y, short)

    x = n.batch_norm(n.data, "bn_data", epsilon=_EPS, axis=axis, scale=False)
    x = n.conv2d(x, filters[0], (7, 7), "conv0", strides=(2, 2), padding=(3, 3))
    x = n.pool("max", norm_relu(x, "bn0"), (3, 3), (2, 2), (1, 1))
    for stage, (count, out) in enumerate(
        zip(units or fixed[depth], filters[1:], strict=True), start=1
    ):
        strides = (1, 1) if stage == 1 else (2, 2)
        x = unit(x, out, strides, False, f"stage{stage}_unit1")
        for index in range(2, count + 1):
            x = unit(x, out, (1, 1), True, f"stage{stage}_unit{index}")
    x = n.flatten(n.global_avg_pool(norm_relu(x, "bn1")))
    return n, n.softmax(n.dense_add_bias(x, classes, "fc1"))


def mobilenet(image: int, alpha: float = 1.0, layout: str = "NCHW", classes: int = 1000) -> Net:
    """MobileNet v1. In NHWC the first batch norm is along the rows, as TVM has it."""
    n = Layers((1, 3, image, image) if layout == "NCHW" else (1, image, image, 3), layout)
    axis = layout.index("C")

    def separable(x: Value, out: int, strides: Pair, name: str) -> Value:
        inner = x.shape[axis]
        x = n.conv2d(x, inner, (3, 3), name, strides=strides, padding=(1, 1), depthwise=True)
        x = n.relu(n.batch_norm(x, f"{name}_bn1", axis=axis))
        x = n.conv2d(x, out, (1, 1), f"{name}_conv2")
        return n.relu(n.batch_norm(x, f"{name}_bn2", axis=axis))

    x = n.conv2d(n.data, int(32 * alpha), (3, 3), "conv_block_1_conv", strides=(2, 2),
                 padding=(1, 1))  # fmt: skip
    x = n.relu(n.batch_norm(x, "conv_block_1_bn"))
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
              (1024, 2), (1024, 1)]  # fmt: skip
    for index, (out, stride) in enumerate(blocks, start=1):
        x = separable(x, int(out * alpha), (stride, stride), f"separable_conv_block_{index}")
    x = n.dense(n.flatten(n.global_avg_pool(x)), classes, "fc")
    return n, n.softmax(n.bias_add(x, "fc_bias"))


def squeezenet(version: str, image: int, divisor: int = 1, classes: int = 1000) -> Net:
    """SqueezeNet 1.0 or 1.1."""
    n = Layers((1, 3, image, image))

    def biased(x: Value, out: int, kernel: Pair, name: str, bias: str, **more: Pair) -> Value:
        return n.relu(n.bias_add(n.conv2d(x, out, kernel, name, **more), bias))  # type: ignore[arg-type]

    def same(x: Value, out: int, size: int, name: str) -> Value:
        return biased(x, out // divisor, (size, size), name, f"{name}_bias",
                      padding=(size // 2, size // 2))  # fmt: skip

    def fire(x: Value, squeeze: int, expand: int, name: str) -> Value:
        x = same(x, squeeze, 1, f"{name}_input_conv")
        sides = [same(x, expand, 1, f"{name}_left_conv"), same(x, expand, 3, f"{name}_right_conv")]
        return n.concatenate(sides)

    first, size, pools = (96, 7, (1, 4, 8)) if version == "1.0" else (64, 3, (1, 3, 5))
    x = biased(n.data, first // divisor, (size, size), "conv1", "conv1_bias", strides=(2, 2),
               padding=(size // 2, size // 2))  # fmt: skip
    for index, squeeze in enumerate((16, 16, 32, 32, 48, 48, 64, 64), start=1):
        if index in pools:
            x = n.pool("max", x, (3, 3), (2, 2))
        x = fire(x, squeeze, 4 * squeeze, f"fire{index}")
    x = biased(n.dropout(x), classes, (1, 1), "conv_final", "conv_final_bias")
    return n, n.softmax(n.flatten(n.global_avg_pool(x)))


def densenet(
    init: int = 64, growth: int = 32, blocks: Sequence[int] = (6, 12, 24, 16), classes: int = 1000,
    image: int = 224, batch: int = 4,
) -> Net:  # fmt: skip
    """DenseNet, as TVM has it: a layer reads the one before, a block is all of its layers."""
    n = Layers((batch, 3, image, image))

    def norm_relu(x: Value, name: str) -> Value:
        return n.relu(n.batch_norm(x, name))

    x = n.conv2d(n.data, init, (7, 7), "conv1", strides=(2, 2), padding=(3, 3))
    x = n.pool("max", norm_relu(x, "batch1"), (3, 3), (2, 2), (1, 1))
    features = init
    for i, count in enumerate(blocks):
        made = []
        for j in range(count):
            x = n.conv2d(norm_relu(x, f"batch_1_{i}_{j}"), 4 * growth, (1, 1), f"conv2d_1_{i}_{j}")
            x = n.conv2d(norm_relu(x, f"batch_2_{i}_{j}"), growth, (3, 3), f"conv2d_2_{i}_{j}",
                         padding=(1, 1))  # fmt: skip
            made.append(x)
        x, features = n.concatenate(made), features + count * growth
        if i + 1 < len(blocks):
            features //= 2
            x = n.conv2d(norm_relu(x, f"batch_t_{i}"), features, (1, 1), f"conv_t_{i}")
            x = n.avg_pool(x, (2, 2), (2, 2))
    x = n.avg_pool(norm_relu(x, "batch2"), (7, 7))
    return n, n.dense_add_bias(n.flatten(x), classes, "dense")


def vgg(image: int, batch_norm: bool, divisor: int = 1, classes: int = 1000) -> Net:
    """VGG 11."""
    n = Layers((1, 3, image, image))
    x = n.data
    plan = [(1, 64), (1, 128), (2, 256), (2, 512), (2, 512)]
    for i, (count, out) in enumerate(plan, start=1):
        for j in range(1, count + 1):
            x = n.conv2d(x, out // divisor, (3, 3), f"conv{i}_{j}", padding=(1, 1))
            x = n.bias_add(x, f"conv{i}_{j}_bias")
            x = n.relu(n.batch_norm(x, f"bn{i}_{j}") if batch_norm else x)
        x = n.pool("max", x, (2, 2), (2, 2))
    x = n.flatten(x)
    for name in ("fc6", "fc7"):
        x = n.dropout(n.relu(n.dense_add_bias(x, 4096 // divisor, name)))
    return n, n.softmax(n.dense_add_bias(x, classes, "fc8", gain=0.3))


def dcgan(ngf: int = 128, layout: str = "NCHW") -> Net:
    """The generator of DCGAN: 100 numbers to an image of 64 x 64."""
    n = Layers((1, 100), layout)
    x = n.relu(n.dense(n.data, 4 * 4 * ngf * 8, "dense"))
    x = n.reshape(x, (-1, ngf * 8, 4, 4) if layout == "NCHW" else (-1, 4, 4, ngf * 8))
    plan = [("g2", ngf * 4, 8), ("g3", ngf * 2, 16), ("g4", ngf, 32), ("g5", 3, 64)]
    for name, out, size in plan:
        more = (size + 2 * 1 - 4) % 2
        x = n.conv2d_transpose(
            x, out, (4, 4), f"{name}_deconv", strides=(2, 2), padding=(1, 1),
            output_padding=(more, more),
        )  # fmt: skip
        if name != "g5":
            x = n.relu(n.batch_norm(x, f"{name}_batch_norm", epsilon=1e-5 + 1e-12, scale=False,
                                    axis=layout.index("C")))  # fmt: skip
    return n, n.tanh(x)


def mlp(classes: int = 10) -> Net:
    """Three dense layers on digits."""
    n = Layers((1, 1, 28, 28))
    x = n.flatten(n.data)
    for name, units in (("fc1", 128), ("fc2", 64), ("fc3", classes)):
        x = n.bias_add(n.dense(x, units, name), f"{name}_bias")
        x = n.softmax(x) if name == "fc3" else n.relu(x)
    return n, x


def dqn(actions: int = 18) -> Net:
    """Nature's DQN on four images of 84 x 84."""
    n = Layers((1, 4, 84, 84))
    x = n.data
    for name, out, size, stride in (("conv1", 32, 8, 4), ("conv2", 64, 4, 2), ("conv3", 64, 3, 1)):
        x = n.conv2d(x, out, (size, size), name, strides=(stride, stride))
        x = n.relu(n.bias_add(x, f"{name}_bias"))
    x = n.relu(n.dense_add_bias(n.flatten(x), 512, "dense1"))
    return n, n.dense_add_bias(x, actions, "dense2")


def inception_v3(divisor: int = 1, classes: int = 1000) -> Net:
    """Inception v3 on 299 x 299: towers of convolutions, concatenated."""
    n = Layers((1, 3, 299, 299))

    def conv(x: Value, out: int, name: str, kernel: Pair = (1, 1), stride: int = 1,
             padding: Pair = (0, 0)) -> Value:  # fmt: skip
        x = n.conv2d(x, out // divisor, kernel, f"{name}_conv1", strides=(stride, stride),
                     padding=padding)  # fmt: skip
        return n.relu(n.batch_norm(x, f"{name}_bn", epsilon=_EPS, scale=False))

    def same(x: Value, out: int, name: str, kernel: Pair) -> Value:
        return conv(x, out, name, kernel, padding=(kernel[0] // 2, kernel[1] // 2))

    def pooled(x: Value, kind: str, size: int, stride: int, padding: int) -> Value:
        window = ((size, size), (stride, stride), (padding, padding))
        if kind == "max":
            return n.pool("max", x, *window)
        return n.avg_pool(x, *window, count_include_pad=True)

    def a(x: Value, proj: int, name: str) -> Value:
        five = same(conv(x, 48, f"{name}_tower_conv"), 64, f"{name}_tower_conv_1", (5, 5))
        three = same(conv(x, 64, f"{name}_tower_1_conv"), 96, f"{name}_tower_1_conv_1", (3, 3))
        three = same(three, 96, f"{name}_tower_1_conv_2", (3, 3))
        pool = conv(pooled(x, "avg", 3, 1, 1), proj, f"{name}_tower_2_conv")
        return n.concatenate([conv(x, 64, f"{name}_conv"), five, three, pool])

    def b(x: Value, name: str) -> Value:
        three = same(conv(x, 64, f"{name}_tower_conv"), 96, f"{name}_tower_conv_1", (3, 3))
        three = conv(three, 96, f"{name}_tower_conv_2", (3, 3), 2)
        single = conv(x, 384, f"{name}_conv", (3, 3), 2)
        return n.concatenate([single, three, pooled(x, "max", 3, 2, 0)])

    def c(x: Value, inner: int, name: str) -> Value:
        d = conv(x, inner, f"{name}_tower_conv")
        d = same(d, inner, f"{name}_tower_conv_1", (1, 7))
        d = same(d, 192, f"{name}_tower_conv_2", (7, 1))
        q = conv(x, inner, f"{name}_tower_1_conv")
        kernels: list[Pair] = [(7, 1), (1, 7), (7, 1), (1, 7)]
        for index, (kernel, out) in enumerate(
            zip(kernels, (inner, inner, inner, 192), strict=True), start=1
        ):
            q = same(q, out, f"{name}_tower_1_conv_{index}", kernel)
        pool = conv(pooled(x, "avg", 3, 1, 1), 192, f"{name}_tower_2_conv")
        return n.concatenate([conv(x, 192, f"{name}_conv"), d, q, pool])

    def d(x: Value, name: str) -> Value:
        three = conv(conv(x, 192, f"{name}_tower_conv"), 320, f"{name}_tower_conv_1", (3, 3), 2)
        seven = same(conv(x, 192, f"{name}_tower_1_conv"), 192, f"{name}_tower_1_conv_1", (1, 7))
        seven = same(seven, 192, f"{name}_tower_1_conv_2", (7, 1))
        seven = conv(seven, 192, f"{name}_tower_1_conv_3", (3, 3), 2)
        return n.concatenate([three, seven, pooled(x, "max", 3, 2, 0)])

    def e(x: Value, kind: str, name: str) -> Value:
        def halves(y: Value, prefix: str) -> list[Value]:
            return [same(y, 384, f"{prefix}_mixed_conv", (1, 3)),
                    same(y, 384, f"{prefix}_mixed_conv_1", (3, 1))]  # fmt: skip

        short = halves(conv(x, 384, f"{name}_tower_conv"), f"{name}_tower")
        long = same(conv(x, 448, f"{name}_tower_1_conv"), 384, f"{name}_tower_1_conv_1", (3, 3))
        pool = conv(pooled(x, kind, 3, 1, 1), 192, f"{name}_tower_2_conv")
        parts = [conv(x, 320, f"{name}_conv"), *short, *halves(long, f"{name}_tower_1"), pool]
        return n.concatenate(parts)

    x = conv(conv(n.data, 32, "conv", (3, 3), 2), 32, "conv_1", (3, 3))
    x = pooled(same(x, 64, "conv_2", (3, 3)), "max", 3, 2, 0)
    x = conv(conv(x, 80, "conv_3"), 192, "conv_4", (3, 3))
    x = pooled(x, "max", 3, 2, 0)
    for proj, name in ((32, "mixed"), (64, "mixed_1"), (64, "mixed_2")):
        x = a(x, proj, name)
    x = b(x, "mixed_3")
    for inner, name in ((128, "mixed_4"), (160, "mixed_5"), (160, "mixed_6"), (192, "mixed_7")):
        x = c(x, inner, name)
    x = e(e(d(x, "mixed_8"), "avg", "mixed_9"), "max", "mixed_10")
    x = n.dense(n.flatten(pooled(x, "avg", 8, 1, 0)), classes, "fc1")
    return n, n.softmax(n.bias_add(x, "fc2_bias", axis=-1))
