"""Windows, evidence, policies of knobs, and the pilot that guards them."""
