# SPDX-License-Identifier: Apache-2.0
"""VLMamba: vision encoder -> connector -> Mamba language model (in the manner of VL-Mamba and Cobra)."""

import torch
from torch import nn
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import torch_compilable_check
from transformers.utils.generic import can_return_tuple

from vlmamba.layers.kernels import apply_kernels
from vlmamba.layers.vision_mixer import VisionMixer
from vlmamba.models.generation import StatefulGenerationMixin
from vlmamba.models.modeling_utils import CACHE, KernelPreTrainedModel
from vlmamba.models.vision_features import features_and_states, patch_grid
from vlmamba.models.vlmamba.configuration_vlmamba import VLMambaConfig
from vlmamba.models.vlmamba.outputs import VLMambaCausalLMOutput, VLMambaModelOutput
from vlmamba.models.vlmamba.projector import MultiModalProjector
from vlmamba.models.vlmamba.prompt_images import PromptImages
from vlmamba.models.vlmamba.rationale import OneVocabularyMixin, RationaleTraversal, UnsaidTorMixin
from vlmamba.models.vlmamba.stages import StagedTrainingMixin, rest_if_frozen
from vlmamba.ops.numerics import widened

IMAGES_AT_ONCE = 16  # encoded side by side where nothing is differentiated; more take more memory, not less time


class VLMambaPreTrainedModel(OneVocabularyMixin, StagedTrainingMixin, KernelPreTrainedModel):
    """Initialisation and loading shared by the VLMamba models."""

    config: VLMambaConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    _is_stateful = True
    _can_compile_fullgraph = True
    _no_split_modules = ["VimBlock", "MambaBlock", "Mamba2Block", "FalconMambaBlock", "MultiModalProjector"]
    _skip_keys_device_placement = ["cache", "cache_params"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisionMixer):
            module.reset_parameters()


class VLMambaModel(VLMambaPreTrainedModel):
    """Encoder, connector and language model, without the language modeling head."""

    def __init__(self, config: VLMambaConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = MultiModalProjector(config)
        self.language_model = apply_kernels(AutoModel.from_config(config.text_config))
        self.rationale = None if config.rationale_config is None else RationaleTraversal(config)
        self.post_init()

    def train(self, mode: bool = True) -> "VLMambaModel":
        """As `nn.Module.train`, but an encoder of which nothing learns stays in evaluation mode."""
        super().train(mode)
        rest_if_frozen(self.vision_tower)
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs: object
    ) -> BaseModelOutputWithPooling:
        """Encode images and project them into the language model's space.

        Args:
            pixel_values: `[images or views, channels, H, W]`.
            output_hidden_states: also return the encoder's hidden states; as its config says when None.

        Returns:
            `last_hidden_state` `[images, patches, width]`, the encoder's features; `pooler_output`, a list with
            `[tokens, hidden_size]` of each image.

        Raises:
            ValueError: the pixels are not finite floating-point numbers, or of a wrong shape.
        """
        self._check_pixels(pixel_values)
        at_once = self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()
        groups = [pixel_values] if at_once else pixel_values.split(IMAGES_AT_ONCE)
        parts = [self._encode(group, output_hidden_states) for group in groups]
        features, states, projected = zip(*parts, strict=True)
        return BaseModelOutputWithPooling(
            last_hidden_state=torch.cat(features),
            pooler_output=[image for group in projected for image in group],
            hidden_states=None if states[0] is None else tuple(map(torch.cat, zip(*states, strict=True))),
        )

    def _encode(self, pixel_values: torch.Tensor, output_hidden_states: bool | None) -> tuple:
        """The encoder's features, its hidden states if asked for, the connector's: `[images, tokens, width]` each."""
        tower, layer = self.vision_tower, self.config.vision_feature_layer
        features, states = features_and_states(tower, pixel_values.to(tower.dtype), layer, output_hidden_states)
        grid = patch_grid(tower.config, *pixel_values.shape[-2:])
        # weights that wait elsewhere are on the device meta until accelerate's hooks bring them to the features
        projected = self.multi_modal_projector(features.to(self.get_input_embeddings().weight.dtype), grid)
        return features, states, projected

    @staticmethod
    def _check_pixels(pixel_values: torch.Tensor) -> None:
        """What would else come out as NaN, or as a wrong answer."""
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values has dtype {pixel_values.dtype}, expected floating point: what the image processor gives"
            )
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(pixel_values).all()):
            raise ValueError("pixel_values has NaN or infinite values, expected finite ones")

    def _embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings `[B, L, hidden_size]`; placeholders may be tokens that the language model has no row for."""
        if input_ids.is_floating_point():
            raise ValueError(f"input_ids has dtype {input_ids.dtype}, expected integers: token ids")
        for token in (self.config.image_token_id, self.config.tor_token_id):
            if token is not None and token >= self.config.text_config.vocab_size:
                input_ids = input_ids.masked_fill(input_ids == token, 0)
        return self.get_input_embeddings()(input_ids)

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, num_features: int
    ) -> torch.Tensor:
        """`[B, L, 1]`, True at image placeholders.

        Raises:
            ValueError: there are more or fewer placeholders than image features.
        """
        mask = self.placeholders(input_ids, inputs_embeds)
        found = mask.sum()
        # in a compiled graph, too
        torch_compilable_check(found == num_features, lambda: str(self._mismatch(int(found), num_features)))
        return mask.unsqueeze(-1)

    def placeholders(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """`[B, L]`, True at image placeholders of ids, or of embeddings where there are no ids."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self._embed(token)).all(-1)

    def _mismatch(self, found: int, given: int) -> ValueError:
        return ValueError(
            f"the prompt has {found} image placeholder tokens, but the images give {given} "
            f"features ({self.config.image_seq_length} per view)"
        )

    def prompt_images(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None,
    ) -> PromptImages | None:
        """The images of a prompt that is read in pieces; arguments as `forward`'s. None if there are none.

        Raises:
            ValueError: there are more or fewer placeholders than image features.
        """
        places = self.placeholders(input_ids, inputs_embeds)
        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is not None:
            images, encode = list(encoded.pooler_output), list
        elif pixel_values is not None and len(pixel_values):
            images, encode = pixel_values, lambda some: self.get_image_features(some, return_dict=True).pooler_output
        elif found := int(places.sum()):
            raise self._mismatch(found, 0)
        else:
            return None
        return PromptImages(places, images, encode, self._mismatch)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        cache_params: Cache | None = None,
        rationale_input_ids: torch.Tensor | None = None,
        rationale_attention_mask: torch.Tensor | None = None,
        **kwargs: object,
    ) -> VLMambaModelOutput:
        """See `VLMambaForConditionalGeneration.forward`."""
        if kwargs.get("past_key_values") is not None:
            raise ValueError("past_key_values is not used by this model: pass the states as cache")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self._embed(input_ids)
        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is None and pixel_values is not None and len(pixel_values):
            encoded = self.get_image_features(pixel_values, return_dict=True)
        features = None
        if encoded is not None:
            features = torch.cat(list(encoded.pooler_output)).to(inputs_embeds.device, inputs_embeds.dtype)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, features.shape[0])
            inputs_embeds = inputs_embeds.masked_scatter(mask, features)
        elif input_ids is not None and input_ids.shape[1] > 1:
            self.get_placeholder_mask(input_ids, inputs_embeds, 0)
        cache, traversed = cache_params if cache is None else cache, None
        if self.rationale is not None:
            own = (rationale_input_ids, rationale_attention_mask)
            inputs_embeds, traversed = self.rationale.insert(
                inputs_embeds, input_ids, attention_mask, features, cache, *own
            )
        elif rationale_input_ids is not None:
            raise ValueError("rationale_input_ids is given, but the model has no rationale_config")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states or None  # else as the language model's config says
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **{CACHE: cache},
        )
        return VLMambaModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            image_hidden_states=features,
            rationale_hidden_states=traversed,
            **{CACHE: getattr(outputs, CACHE)},
        )


class VLMambaForConditionalGeneration(VLMambaPreTrainedModel, UnsaidTorMixin, StatefulGenerationMixin):
    """Answers questions about images.

    Example:
        >>> model = AutoModelForImageTextToText.from_pretrained(folder)
        >>> processor = AutoProcessor.from_pretrained(folder)
        >>> inputs = processor(images=image, text="<|user|><image>What is this?<|assistant|>", return_tensors="pt")
        >>> processor.decode(model.generate(**inputs)[0])
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embeddings.weight"}

    def __init__(self, config: VLMambaConfig):
        super().__init__(config)
        self.model = VLMambaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: object) -> BaseModelOutputWithPooling:
        """See `VLMambaModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        cache_params: Cache | None = None,
        rationale_input_ids: torch.Tensor | None = None,
        rationale_attention_mask: torch.Tensor | None = None,
        **kwargs: object,
    ) -> VLMambaCausalLMOutput:
        """One pass over a prompt, or over its continuation.

        Args:
            input_ids: `[B, L]`, with `config.image_seq_length` placeholder tokens for each image.
            pixel_values: `[images, 3, H, W]`, the images of the whole batch, or their views, in reading order.
            attention_mask: `[B, L]`, 0 for padding, on either side.
            inputs_embeds: `[B, L, hidden_size]` instead of `input_ids`.
            cache: states to continue from; `input_ids` then holds only the new tokens, one or many.
            labels: `[B, L]` token ids, -100 where no loss is wanted.
            use_cache: return the states (`cache`).
            logits_to_keep: compute only the last so many logits; 0 for all.
            mm_encoder_outputs: {"image": `get_image_features(...)`} instead of `pixel_values`.
            cache_params: another name for `cache`.
            rationale_input_ids: `[B, any]`, what the rationale traversal reads instead of `input_ids`, with as many
                `<tor>` tokens in every row and the same images (`RationaleTraversal`).
            rationale_attention_mask: `[B, any]`, 0 for its padding, on either side.

        Returns:
            `VLMambaCausalLMOutput`.

        Raises:
            ValueError: placeholders and images do not match; both numbers are named.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            cache=cache_params if cache is None else cache,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            mm_encoder_outputs=mm_encoder_outputs,
            rationale_input_ids=rationale_input_ids,
            rationale_attention_mask=rationale_attention_mask,
            past_key_values=kwargs.pop("past_key_values", None),
            return_dict=True,
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        logits = widened(self.lm_head(hidden_states.to(self.lm_head.weight.dtype)))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return VLMambaCausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            image_hidden_states=outputs.image_hidden_states,
            rationale_hidden_states=outputs.rationale_hidden_states,
            **{CACHE: getattr(outputs, CACHE)},
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        pixel_values: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        cache_params: Cache | None = None,
        use_cache: bool | None = None,
        is_first_iteration: bool | None = False,
        rationale_input_ids: torch.Tensor | None = None,
        rationale_attention_mask: torch.Tensor | None = None,
        **kwargs: object,
    ) -> dict:
        """Images, rationale and the padding mask enter with the prompt only; after it the states hold all."""
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            use_cache=use_cache,
            is_first_iteration=is_first_iteration,
            **{CACHE: cache_params if cache is None else cache},
            **kwargs,
        )
        if is_first_iteration or not use_cache:
            model_inputs["pixel_values"] = pixel_values
            model_inputs["mm_encoder_outputs"] = mm_encoder_outputs
            model_inputs["rationale_input_ids"] = rationale_input_ids
            model_inputs["rationale_attention_mask"] = rationale_attention_mask
        else:
            model_inputs["attention_mask"] = None
        return model_inputs

    def _prompt_images(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, options: dict
    ) -> PromptImages | None:
        pixel_values, encoded = options.pop("pixel_values", None), options.pop("mm_encoder_outputs", None)
        return self.model.prompt_images(input_ids, inputs_embeds, pixel_values, encoded)
