"""The intake: an encoded image or video becomes a payload in the arena.

In the program's process, on its event loop: ``pool`` and ``placement``. In worker processes: ``worker``, ``writer`` and
``media``, the only folder that decodes (Pillow, PyAV, transformers).

What is done to a payload, five steps in three files (between them stand the pool, which hands jobs to workers, and the
program's handler)::

    media.processor.MediaProcessor.open   the header tells its size           (worker)
    writer.PayloadWriter.reserve          asks where it goes                  (worker)
    placement.Placement.grant             beside the answer, or a block       (program)
    writer.PayloadWriter.write            decoded, and written there          (worker)
    placement.Placement.commit            the block is complete: its handle   (program)
"""
