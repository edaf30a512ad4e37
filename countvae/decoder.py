"""The linear-Gaussian decoder, p(eta | z), in centred-log-ratio space.

The noise is isotropic, so the law of the counts does not depend on which orthonormal basis Psi is
chosen: with V = Psi W the logits are mu + V z + eps. Psi is applied at the edges only.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

SIGMA2_RANGE = (1e-4, 100.0)


class Decoder(nn.Module):
    """V, mu and sigma2, with V and mu centred over the features.

    Parameters
    ----------
    V : (d, k)
        Loadings in CLR space, V = Psi W.
    mu : (d,)
        Centre in CLR space, Psi mu_ILR.
    sigma2 : scalar or (d,)
        Variance of the noise, shared by all features or by feature.
    """

    sigma2: Tensor

    def __init__(self, V: Tensor, mu: Tensor, sigma2: Tensor) -> None:
        super().__init__()
        self.V = nn.Parameter(V - V.mean(0))
        self.mu = nn.Parameter(mu - mu.mean())
        self.register_buffer("sigma2", sigma2.clone())

    def forward(
        self,
        z: Float[Tensor, "b k"],
        D: Float[Tensor, "b k"],
        U: Float[Tensor, "d k"] | None = None,
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Mean m0 = mu + V z and variance Q_j = v_j' diag(D) v_j of the noiseless logits.

        With variances U of the loadings, Q_j has sum_c U_jc (z_c^2 + D_c) as well.
        """
        m0, V2 = torch.addmm(self.mu, z, self.V.T), self.V * self.V
        Q = D @ V2.T if U is None else torch.addmm(D @ (V2 + U).T, z * z, U.T)
        return m0, Q

    @torch.no_grad()
    def rescale(self, A: Float[Tensor, "k k"], shift: Float[Tensor, " k"]) -> None:
        """Write the same law in factors u, where z = A u + shift."""
        self.mu += self.V @ shift
        self.V.copy_(self.V @ A)
        self.centre()

    @torch.no_grad()
    def centre(self) -> None:
        """Remove what softmax ignores: the means of mu and of each column of V."""
        self.V -= self.V.mean(0)
        self.mu -= self.mu.mean()

    @torch.no_grad()
    def grow_sigma2(self, ratio: Tensor) -> None:
        """One step of the fixed point of sigma2, by at most a factor of two."""
        self.sigma2.mul_(ratio.clamp(0.5, 2)).clamp_(*SIGMA2_RANGE)
