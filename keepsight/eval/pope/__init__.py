"""POPE: yes-or-no questions about objects in pictures, how they are built, answered, read and scored."""
