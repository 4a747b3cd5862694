"""The backbones in PyTorch alone, with the parameter names of those whose weights are read."""

import functools

import torch
import torch.nn.functional as F
from torch import nn


def classifier(network):
    """The last linear layer, wherever it is."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


class Residual(nn.Module):
    def __init__(self, inputs, inner, stride, bottleneck):
        super().__init__()
        if bottleneck:
            outputs = 4 * inner
            self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
            self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
        else:
            outputs = inner
            self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(inner, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(inner), nn.BatchNorm2d(inner)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            x = self.bn3(self.conv3(F.relu(x)))
        return F.relu(x + shortcut)


class ResNet(nn.Module):
    def __init__(self, depths, width, bottleneck=False, num_classes=1000, small_images=False):
        super().__init__()
        stem = (3, 1, 1) if small_images else (7, 2, 3)
        self.conv1 = nn.Conv2d(3, width, *stem, bias=False)
        self.small_images = small_images
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage, depth in enumerate(depths):
            inner, blocks = width * 2**stage, []
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(Residual(channels, inner, stride, bottleneck))
                channels = 4 * inner if bottleneck else inner
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.fc = nn.Linear(channels, num_classes)

    def encode(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        if not self.small_images:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x.mean((2, 3))


class AlexNet(nn.Module):
    def __init__(self, num_classes=1000):
        super().__init__()
        layers = []
        shapes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1)]
        shapes += [(384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
        for position, shape in enumerate(shapes):
            layers += [nn.Conv2d(*shape), nn.ReLU()]
            if position in (0, 1, 4):
                layers.append(nn.MaxPool2d(3, 2))
        self.features = nn.Sequential(*layers)
        dense = [nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU()]
        dense += [nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, num_classes)]
        self.classifier = nn.Sequential(*dense)

    def encode(self, x):
        x = F.adaptive_avg_pool2d(self.features(x), 6).flatten(1)
        return self.classifier[:-1](x)


class Separable(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv_dw = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        x = F.relu6(self.bn1(self.conv_dw(x)))
        return F.relu6(self.bn2(self.conv_pw(x)))


class MobileNetV1(nn.Module):
    def __init__(self, num_classes=1000):
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        channels, stages = 32, []
        for outputs, count in ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2)):
            blocks = []
            for position in range(count):
                stride = 2 if position == 0 and outputs != 64 else 1
                blocks.append(Separable(channels, outputs, stride))
                channels = outputs
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, num_classes)

    def encode(self, x):
        return self.blocks(F.relu6(self.bn1(self.conv_stem(x)))).mean((2, 3))


class SameConv(nn.Conv2d):
    """With TensorFlow's padding: the odd pixel of zeros behind."""

    def forward(self, x):
        (size, _), (stride, _) = self.kernel_size, self.stride
        pads = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in x.shape[:1:-1]]
        return super().forward(F.pad(x, [n for pad in pads for n in (pad // 2, pad - pad // 2)]))


class Inverted(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride, expansion):
        super().__init__()
        inner = inputs * expansion
        norm = functools.partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
        self.widens, self.has_shortcut = expansion > 1, (inputs, stride) == (outputs, 1)
        if self.widens:
            self._expand_conv, self._bn0 = nn.Conv2d(inputs, inner, 1, bias=False), norm(inner)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = norm(inner)
        self._project_conv, self._bn2 = nn.Conv2d(inner, outputs, 1, bias=False), norm(outputs)

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.has_shortcut else y


class EfficientNetLite(nn.Module):
    """The smallest, Lite0, with the names of efficientnet-lite-pytorch."""

    def __init__(self, num_classes=1000):
        super().__init__()
        norm = functools.partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2, bias=False), norm(32)
        self._blocks, channels = nn.ModuleList(), 32
        stages = [(16, 3, 1, 1, 1), (24, 3, 2, 6, 2), (40, 5, 2, 6, 2), (80, 3, 2, 6, 3)]
        stages += [(112, 5, 1, 6, 3), (192, 5, 2, 6, 4), (320, 3, 1, 6, 1)]
        for outputs, kernel, stride, expansion, count in stages:
            for position in range(count):
                step = stride if position == 0 else 1
                self._blocks.append(Inverted(channels, outputs, kernel, step, expansion))
                channels = outputs
        self._conv_head, self._bn1 = nn.Conv2d(channels, 1280, 1, bias=False), norm(1280)
        self._fc = nn.Linear(1280, num_classes)

    def encode(self, x):
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.heads = width // 64
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, 64).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / 8).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class Encoder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn, self.mlp = Attention(width), nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, width, depth, size, num_classes=1000):
        super().__init__()
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + (size // 16) ** 2, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 16, 16)
        self.blocks = nn.Sequential(*(Encoder(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, num_classes)

    def encode(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.norm(self.blocks(x))[:, 0]
