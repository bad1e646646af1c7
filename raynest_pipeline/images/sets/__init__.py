"""Prompt sets: templates with variables, expanded to prompts one at a time. See docs/prompts.md.

schema.py reads the YAML file, template.py the text with its {variables}, space.py numbers the combinations
of values, expansion.py chooses among the numbers; reading.py puts them together and finds the mistakes.
"""
