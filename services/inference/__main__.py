"""`al-inference` from its first moment: told to end while it still imports onnxruntime, it ends well."""

from services.common.ending import leave_on_sigterm


def main() -> None:
    leave_on_sigterm()
    from services.inference import server

    server.main()


if __name__ == "__main__":
    main()
