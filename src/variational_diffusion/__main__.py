"""`python -m variational_diffusion`: the command `vdm`."""

from variational_diffusion.cli import main

if __name__ == "__main__":
    main()
