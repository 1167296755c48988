"""The guide: everything that the README leaves out, a Markdown file each.

.. include:: methods.md
.. include:: cards.md
.. include:: interventions.md
.. include:: editing.md
.. include:: lenses.md
.. include:: paper.md
.. include:: runs.md
.. include:: rows.md
.. include:: data.md
.. include:: models.md
.. include:: encoders.md
.. include:: precision.md
.. include:: speed.md
.. include:: pods.md
.. include:: research.md
.. include:: troubleshooting.md
.. include:: peers.md
.. include:: contributing.md
"""
