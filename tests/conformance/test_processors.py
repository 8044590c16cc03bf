# SPDX-License-Identifier: Apache-2.0
"""transformers' tests of processors and image processors."""

import unittest

from transformers import ProcessorMixin

from tests.conformance.harness import ImageProcessingTester, ImageProcessingTestMixin, ProcessorTesterMixin
from tests.models.tiny import tiny_tokenizer
from vlmamba import CobraImageProcessor, VLMambaImageProcessor, VLMambaProcessor


class VLMambaProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = VLMambaProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return tiny_tokenizer()

    @classmethod
    def _setup_image_processor(cls):
        return VLMambaImageProcessor(size={"height": 16, "width": 16})

    @staticmethod
    def prepare_processor_dict():
        return {"num_image_tokens": 4}

    @staticmethod
    def does_processor_return_mm_offsets(processor_class, method_name):
        """Whether that method is not the base class's; transformers asks the next base alone."""
        return getattr(processor_class, method_name) is not getattr(ProcessorMixin, method_name)


class _ImageTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        super().__init__(parent, max_resolution=60, size={"height": 18, "width": 18}, **kwargs)

    def _get_image_processing_classes(self):
        return {"torchvision": self.parent.image_processor_class}

    def expected_output_image_shape(self, images):
        copies = len(getattr(self.parent.image_processor_class, "crop_pct", (1,)))
        return self.num_channels * copies, 18, 18


class ImageProcessorTests(ImageProcessingTestMixin):
    image_processor_tester_class = _ImageTester


class VLMambaImageProcessorTest(ImageProcessorTests, unittest.TestCase):
    image_processor_class = VLMambaImageProcessor


class CobraImageProcessorTest(ImageProcessorTests, unittest.TestCase):
    image_processor_class = CobraImageProcessor
